"""The lessons: a folder for each problem, a file for each implementation."""
