"""From labelled images to a bundle that can score."""
