"""What a speed-up costs, measured: picture quality, drift, work, time and memory, and how they are shown."""
