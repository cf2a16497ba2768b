"""What a reader sees: tables, charts, the page, the model card."""
