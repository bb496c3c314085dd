"""The recurrent network, its loop over time told two ways: torch_loop, then tensorflow_scan. The equations are in
pipeline/problems/recurrent.py."""
