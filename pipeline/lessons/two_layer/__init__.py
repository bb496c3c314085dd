"""The two-layer network, told five ways: read them in the order numpy_arrays, torch_tensors, torch_autograd,
torch_function, tensorflow_graph. The equations are in pipeline/problems/two_layer.py."""
