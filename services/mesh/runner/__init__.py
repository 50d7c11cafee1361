"""The local mesh: the services of docker-compose.yml as processes of this machine, with embedded infrastructure."""
