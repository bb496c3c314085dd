"""What generate, reference and train do."""
