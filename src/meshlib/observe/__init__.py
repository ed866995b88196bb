"""Looking at the mesh: why a request goes where it goes."""
