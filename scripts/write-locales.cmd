@echo off
rem Needs Python 3.10 or newer; the work is done by _write_locales.py.
where py >nul 2>nul && (py -3 -B "%~dp0_write_locales.py" %* & exit /b)
python -B "%~dp0_write_locales.py" %*
