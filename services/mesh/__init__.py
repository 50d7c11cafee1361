"""The local runner: starts the mesh that docker-compose.yml describes as plain processes. Imports no other service."""
