"""Rewards: functions of pictures and prompts that reinforcement learning and evaluation score with."""
