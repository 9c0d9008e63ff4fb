"""What it means: the rooms that listing, images, models, tables, scoring and training live in."""
