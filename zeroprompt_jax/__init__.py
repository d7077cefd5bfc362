"""zeroprompt_jax: one text-to-text model, thousands of prompted tasks, and a small thing per task that conditions it."""

__version__ = "0.1.0"
