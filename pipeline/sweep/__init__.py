"""Many experiments at once: DVC queues them, Ray runs them, and each is recorded as a DVC experiment and MLflow run.

An experiment travels as git commits (a bundle). Its results return as its experiment's ref and the objects that the
driver's DVC cache lacks. No shared file system is needed.
"""
