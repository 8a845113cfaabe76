@echo off
rem The portable ComfyUI's own Python if this clone lies in it, else the one that is installed.
set "embedded=%~dp0..\..\..\..\python_embeded\python.exe"
if exist "%embedded%" ("%embedded%" "%~dp0zbus-bench" %* & exit /b)
where py >nul 2>nul && (py -3 "%~dp0zbus-bench" %* & exit /b)
python "%~dp0zbus-bench" %*
