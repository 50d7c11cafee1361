"""Divides GPUs among the services (NVIDIA's Multi-Instance GPU): `tunemesh mig plan`, `tunemesh mig status`. Not verified on hardware."""
