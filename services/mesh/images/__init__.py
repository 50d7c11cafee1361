"""What the images need beside the code of their services. Knows packages and files, no container engine."""
