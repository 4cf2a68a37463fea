"""The decoder: its declaration, its forward passes, its place on a mesh, and its files."""
