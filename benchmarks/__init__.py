"""What is measured for the developers, and no part of the pipeline."""
