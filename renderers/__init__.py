"""From fields to pixels: ray marching, opacity laws, backgrounds, losses and image metrics."""
