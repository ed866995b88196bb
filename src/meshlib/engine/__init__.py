"""The sans-IO call: events in, actions out. Shared by sync and async, HTTP and gRPC, unary and streaming."""
