"""One gRPC service per folder; `common` is the shared kernel, `mesh` the local runner."""
