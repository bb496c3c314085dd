"""MLflow: runs.py says what it is sent and when, store.py how a store is reached."""
