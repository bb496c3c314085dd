"""The stages generate, reference and train."""
