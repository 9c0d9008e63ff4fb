"""The main job: a plan's images through a pool of actors into parts, one gate, one commit."""
