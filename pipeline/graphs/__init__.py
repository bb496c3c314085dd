"""The graph that a framework records of a lesson's step, as data, and how many graphs it defines (graph.py).

A step runs on a small batch (record.py). torch.py reads what autograd recorded, tensorflow.py the function that the
step was traced into. Where a framework records nothing, on_paper.py shows the graph of the problem's equations.
"""
