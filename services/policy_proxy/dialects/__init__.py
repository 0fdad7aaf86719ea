"""APIs in which a call can be asked for beside chat completions; each is translated to that form and back."""
