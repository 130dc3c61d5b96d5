"""The OpenAI dialect: chat completions, responses, models."""
