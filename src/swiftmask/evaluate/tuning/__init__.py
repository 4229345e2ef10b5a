"""The search behind `swiftmask tune`: where to place full steps, and which of many settings to keep."""
