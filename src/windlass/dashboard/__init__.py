"""The dashboard: a page that shows a manager at work, and what is left of its runs.

Theory of operation: the page is served by a process of its own (`windlass.dashboard.serve`), which attaches to the manager as any client
does, asks it for views (`windlass.manager.views`), and tells browsers what has changed (`windlass.dashboard.feed`).  So it serves every
manager of the user's, in a program or detached, and its work never delays the manager's loop.  ``page.html``, ``page.css`` and
``page.js`` are the page, also of a report (`windlass.dashboard.report`).
"""

from __future__ import annotations
