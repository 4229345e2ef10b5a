"""Rewards: functions of images and prompts that reinforcement learning and evaluation score with."""
