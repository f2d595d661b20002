// SPDX-License-Identifier: Apache-2.0
#include "platform.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

#define MAX_FILE (64 * 1024)
#define SETTINGS L"samewire-hns.ini"

struct start {
	void (*run)(void *);
	void *context;
};

static char *read_all(FILE *file)
{
	char *text;
	size_t n;

	if (!file)
		return NULL;
	text = malloc(MAX_FILE + 1);
	n = text ? fread(text, 1, MAX_FILE + 1, file) : 0;
	if (text && (ferror(file) || n > MAX_FILE)) {
		free(text);
		text = NULL;
	}
	fclose(file);
	if (text)
		text[n] = 0;
	return text;
}

#ifdef _WIN32

void lock(lock_t *l) { AcquireSRWLockExclusive(l); }
void unlock(lock_t *l) { ReleaseSRWLockExclusive(l); }

static DWORD WINAPI trampoline(void *argument)
{
	struct start start = *(struct start *)argument;

	free(argument);
	start.run(start.context);
	return 0;
}

int thread_start(thread_t *t, void (*run)(void *), void *context)
{
	struct start *start = malloc(sizeof(*start));

	if (!start)
		return -1;
	start->run = run;
	start->context = context;
	*t = CreateThread(NULL, 0, trampoline, start, 0, NULL);
	if (!*t)
		free(start);
	return *t ? 0 : -1;
}

void thread_join(thread_t t)
{
	WaitForSingleObject(t, INFINITE);
	CloseHandle(t);
}

void thread_forget(thread_t t) { CloseHandle(t); }
thread_id_t thread_self(void) { return GetCurrentThreadId(); }
int thread_same(thread_id_t a, thread_id_t b) { return a == b; }

static BOOL CALLBACK start_sockets(PINIT_ONCE once, void *parameter, void **context)
{
	WSADATA data;

	(void)once, (void)parameter, (void)context;
	return WSAStartup(MAKEWORD(2, 2), &data) == 0;
}

int sockets_ready(void)
{
	static INIT_ONCE once = INIT_ONCE_STATIC_INIT;

	return InitOnceExecuteOnce(&once, start_sockets, NULL, NULL) ? 0 : -1;
}

void socket_close(socket_t s) { closesocket(s); }
void socket_stop(socket_t s) { shutdown(s, SD_BOTH); }

void socket_timeout(socket_t s, unsigned int seconds)
{
	DWORD ms = seconds * 1000;

	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, (const char *)&ms, sizeof(ms));
	setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, (const char *)&ms, sizeof(ms));
}

int socket_silent(socket_t s)
{
	struct timeval now = { 0, 0 };
	fd_set readable;

	FD_ZERO(&readable);
	FD_SET(s, &readable);
	return select(0, &readable, NULL, NULL, &now) == 0;
}

uint64_t clock_ms(void) { return GetTickCount64(); }
void *task_alloc(size_t bytes) { return CoTaskMemAlloc(bytes); }

char *environment(const char *name)
{
	WCHAR wide_name[64], *value;
	char *text = NULL;
	DWORD n;

	MultiByteToWideChar(CP_UTF8, 0, name, -1, wide_name, 64);
	n = GetEnvironmentVariableW(wide_name, NULL, 0);
	if (!n)
		return NULL;
	value = malloc(n * sizeof(WCHAR));
	if (value && GetEnvironmentVariableW(wide_name, value, n) < n)
		text = utf8_from_utf16(value);
	free(value);
	return text;
}

char *settings_beside(void)
{
	WCHAR path[MAX_PATH + 32], *slash;
	HMODULE self;
	DWORD n;

	if (!GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT,
				(const WCHAR *)(uintptr_t)settings_beside, &self))
		return NULL;
	n = GetModuleFileNameW(self, path, MAX_PATH);
	slash = n && n < MAX_PATH ? wcsrchr(path, L'\\') : NULL;
	if (!slash)
		return NULL;
	wcscpy(slash + 1, SETTINGS);
	return read_all(_wfopen(path, L"rb"));
}

char *file_text(const char *path)
{
	WCHAR *wide = utf16_from_utf8(path, strlen(path), malloc);
	char *text = wide ? read_all(_wfopen(wide, L"rb")) : NULL;

	free(wide);
	return text;
}

#else

#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

void lock(lock_t *l) { pthread_mutex_lock(l); }
void unlock(lock_t *l) { pthread_mutex_unlock(l); }

static void *trampoline(void *argument)
{
	struct start start = *(struct start *)argument;

	free(argument);
	start.run(start.context);
	return NULL;
}

int thread_start(thread_t *t, void (*run)(void *), void *context)
{
	struct start *start = malloc(sizeof(*start));

	if (!start)
		return -1;
	start->run = run;
	start->context = context;
	if (pthread_create(t, NULL, trampoline, start) == 0)
		return 0;
	free(start);
	return -1;
}

void thread_join(thread_t t) { pthread_join(t, NULL); }
void thread_forget(thread_t t) { pthread_detach(t); }
thread_id_t thread_self(void) { return pthread_self(); }
int thread_same(thread_id_t a, thread_id_t b) { return pthread_equal(a, b); }

int sockets_ready(void) { return 0; }
void socket_close(socket_t s) { close(s); }
void socket_stop(socket_t s) { shutdown(s, SHUT_RDWR); }

void socket_timeout(socket_t s, unsigned int seconds)
{
	struct timeval limit = { .tv_sec = seconds };

	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

int socket_silent(socket_t s)
{
	struct pollfd one = { .fd = s, .events = POLLIN };

	return poll(&one, 1, 0) == 0;
}

uint64_t clock_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void *task_alloc(size_t bytes) { return malloc(bytes); }

/* What Windows has in ole32; callers of the test double find it here. */
EXPORT void CoTaskMemFree(void *memory) { free(memory); }

char *environment(const char *name)
{
	const char *value = getenv(name);

	return value ? strdup(value) : NULL;
}

char *settings_beside(void) { return NULL; }
char *file_text(const char *path) { return read_all(fopen(path, "rb")); }

#endif
