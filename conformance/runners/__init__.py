"""Those who are given the cases: Envoy, and meshlib over each host library."""
