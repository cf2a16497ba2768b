"""What a training log tells: symptoms, trends, findings. No torch; reads any TRL log."""
