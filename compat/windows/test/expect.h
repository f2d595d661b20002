/* SPDX-License-Identifier: Apache-2.0 */
/* What the test programs share: types of the exports, expectations that are printed and counted. */
#ifndef SAMEWIRE_TEST_EXPECT_H
#define SAMEWIRE_TEST_EXPECT_H

#include <objbase.h>
#include <stdio.h>
#include <string.h>
#include <wchar.h>
#include <windows.h>

typedef HRESULT(WINAPI *f1)(void *);
typedef HRESULT(WINAPI *f2)(const void *, void *);
typedef HRESULT(WINAPI *f3)(const void *, const void *, void *);
typedef HRESULT(WINAPI *f4)(const void *, const void *, const void *, void *);
typedef HRESULT(WINAPI *f5)(const void *, const void *, const void *, void *, void *);

#define NOT_FOUND ((HRESULT)0x80070490)

static int wrong;
static HMODULE network_library, compute_library;

static void expect(int holds, const char *what)
{
	printf("%s %s\n", holds ? "ok" : "WRONG", what);
	fflush(stdout);
	wrong += !holds;
}

/* The exports that have been asked for, each of them to be called. */
#define MAX_EXPORTS 128
static char asked[MAX_EXPORTS][64];
static volatile LONG asked_count;

static int was_asked(const char *name)
{
	for (LONG i = 0; i < asked_count && i < MAX_EXPORTS; i++) {
		if (!strcmp(asked[i], name))
			return 1;
	}
	return 0;
}

static void *get(HMODULE library, const char *name)
{
	void *found = (void *)(uintptr_t)GetProcAddress(library, name);

	if (!was_asked(name) && asked_count < MAX_EXPORTS)
		snprintf(asked[InterlockedIncrement(&asked_count) - 1], sizeof(asked[0]), "%s", name);

	if (!found) {
		printf("WRONG %s is not exported\n", name);
		exit(99);
	}
	return found;
}

#define HCN(name) get(network_library, #name)

/* Whether a text from the library holds another; frees it. */
static int said(WCHAR *text, const WCHAR *part)
{
	int found = text && wcsstr(text, part) != NULL;

	if (text && part && !found)
		printf("  it says %ls\n", text);
	CoTaskMemFree(text);
	return found;
}

static int load_libraries(void)
{
	network_library = LoadLibraryExW(L"computenetwork.dll", NULL, LOAD_LIBRARY_SEARCH_SYSTEM32);
	compute_library = LoadLibraryExW(L"vmcompute.dll", NULL, LOAD_LIBRARY_SEARCH_SYSTEM32);
	expect(network_library && compute_library, "both libraries load from system32");
	return wrong;
}

#endif
