"""A loaded model behind the endpoints of OpenAI's API: one worker, a fair queue, and a web application."""
