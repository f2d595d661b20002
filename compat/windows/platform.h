/* SPDX-License-Identifier: Apache-2.0 */
/* What the shim needs of its host: Windows (and Wine), or POSIX, where the same exports are a test double. */
#ifndef SAMEWIRE_PLATFORM_H
#define SAMEWIRE_PLATFORM_H

#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#include <winsock2.h>
#include <ws2tcpip.h>
#include <windows.h>
#include <objbase.h>

#define EXPORT __declspec(dllexport)
typedef SOCKET socket_t;
typedef SRWLOCK lock_t;
typedef HANDLE thread_t;
typedef DWORD thread_id_t;
#define NO_SOCKET INVALID_SOCKET
#define LOCK_INITIAL SRWLOCK_INIT
#else
#include <pthread.h>

#define EXPORT __attribute__((visibility("default")))
#define WINAPI
#define CALLBACK
typedef int32_t HRESULT;
typedef uint32_t DWORD;
typedef uint16_t WCHAR;
typedef WCHAR *PWSTR;
typedef const WCHAR *PCWSTR;
typedef struct {
	uint32_t Data1;
	uint16_t Data2;
	uint16_t Data3;
	uint8_t Data4[8];
} GUID;
typedef const GUID *REFGUID_P;
typedef int socket_t;
typedef pthread_mutex_t lock_t;
typedef pthread_t thread_t;
typedef pthread_t thread_id_t;
#define NO_SOCKET (-1)
#define LOCK_INITIAL PTHREAD_MUTEX_INITIALIZER
#define S_OK 0
#endif

void lock(lock_t *l);
void unlock(lock_t *l);
int thread_start(thread_t *t, void (*run)(void *), void *context);
void thread_join(thread_t t);
void thread_forget(thread_t t);
thread_id_t thread_self(void);
int thread_same(thread_id_t a, thread_id_t b);

int sockets_ready(void);
void socket_close(socket_t s);
void socket_stop(socket_t s);	/* wakes a thread that reads from it */
void socket_timeout(socket_t s, unsigned int seconds);
int socket_silent(socket_t s);	/* nothing has arrived, not even its end */

uint64_t clock_ms(void);	/* counts on whatever happens to the time of day */

/* Memory that the caller of an export frees with CoTaskMemFree. */
void *task_alloc(size_t bytes);

/* Value of an environment variable, to be freed; NULL = not set. */
char *environment(const char *name);
/* Text of the settings file beside the library, to be freed; NULL = there is none. */
char *settings_beside(void);
/* Text of a file whose name is UTF-8, to be freed; NULL = unreadable, or larger than 64 KiB. */
char *file_text(const char *path);

#endif
