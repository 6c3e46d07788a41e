"""The page with a field for the token, which a browser is sent where a program gets an error as JSON."""

from __future__ import annotations

from html import escape

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Sluice: token needed</title>
<style>
  :root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
  body {{ display: grid; place-content: center; min-height: 100vh; margin: 0 16px; }}
  form {{ display: grid; gap: 12px; max-width: 26rem; }}
  h1, p {{ margin: 0; }}
  h1 {{ font-size: 1.25rem; }}
  input, button {{ font: inherit; padding: 8px 12px; border: 1px solid #767676; border-radius: 6px; }}
  :focus-visible {{ outline: 3px solid #2f6fde; outline-offset: 2px; }}
  .wrong {{ color: light-dark(#b00020, #ff8a80); }}
</style>
<main>
  <form method="get" action="/">
    <h1>This server needs a token</h1>
    <p>It is at the end of the address that was printed when the server started, after <code>?token=</code>.</p>
    {wrong}
    <label for="token">Token</label>
    <input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
    <button>Open</button>
  </form>
</main>
</html>
"""


def token_page(wrong: bool) -> str:
    """The page as HTML. wrong: whether a token was given that is not the server's."""
    sentence = "This is not the token of this server."
    return _PAGE.format(wrong=f'<p class="wrong" role="alert">{escape(sentence)}</p>' if wrong else "")
