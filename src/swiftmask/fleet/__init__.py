"""Many images by many processes: shards that are written whole, and the engines that spread them."""
