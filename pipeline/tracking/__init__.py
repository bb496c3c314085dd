"""MLflow: what it is sent, and how."""
