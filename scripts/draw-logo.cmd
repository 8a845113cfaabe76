@echo off
rem Needs Python 3.10 or newer; the work is done by _draw_logo.py.
where py >nul 2>nul && (py -3 -B "%~dp0_draw_logo.py" %* & exit /b)
python -B "%~dp0_draw_logo.py" %*
