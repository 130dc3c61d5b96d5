"""The Anthropic dialect: messages, their token counts, models."""
