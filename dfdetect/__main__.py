"""python -m dfdetect"""

from dfdetect.cli import app

app(prog_name="dfdetect")
