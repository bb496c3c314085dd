"""MLflow: runs.py logs the results, store.py connects to a store."""
