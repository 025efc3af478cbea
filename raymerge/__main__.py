from raymerge.cli import run

run()
