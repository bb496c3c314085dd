"""The quantities of a step: every value that an equation of a problem computes.

equations.py reads the equations from the docstring of the problem's file, paper.py computes them in float64, observe.py
runs a lesson and records what its lines compute.
"""
