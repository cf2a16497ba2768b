"""Tables, charts, the page and the model card, as a reader sees them."""
