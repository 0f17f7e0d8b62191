"""The browser that prints the book and tests its pages."""

import os
import shutil

from playwright.sync_api import sync_playwright


def find_browser():
    """Path of a Chromium or Chrome on this machine, playwright's own included, or None.

    Returns
    -------
    str or None
    """
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found:
        return found
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if os.path.exists(path) else None
