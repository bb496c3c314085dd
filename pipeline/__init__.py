"""One experiment told seven ways: two small networks, seven implementations, one way to compare them."""
