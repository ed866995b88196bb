"""The connection to an xDS control plane. grpc is loaded only when a stream is opened."""
