"""What a speed-up costs, measured: image quality, drift, work, time and memory, and how they are shown."""
