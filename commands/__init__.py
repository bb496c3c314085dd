"""What a user starts beside `dvc repro`."""
