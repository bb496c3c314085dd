"""The loops as tutorials write them: the lessons' own steps, with nothing done for their speed.

An implementation here offers what a benchmark needs of `pipeline/contract.py`: no `predict`, and `train` waits for the
device, since every loss is read back to the host when it is computed.
"""
