"""One page about one run or several: what was asked, what came out, and how it went.

    run folder --reading--> configuration, metrics by name, masks by step
               --figures--> what to show, thinned out to what an eye can see
               --charts, maps--> SVG and PNG  --page--> one HTML file that needs nothing else

`write_report(folders, path)` makes it; `llmshearing report` is the command.
"""

from llmshearing.report.page import write_report

__all__ = ["write_report"]
