// SPDX-License-Identifier: Apache-2.0
/*
 * vmcompute.c - the networking entry point of vmcompute.dll, HNSCall. What is about compute systems is not implemented,
 * and says so, so that a program that looks for it gets an answer. (On x64 the caller takes its arguments off the stack.)
 */
#include <stdlib.h>
#include <string.h>

#include "call.h"
#include "text.h"

EXPORT HRESULT WINAPI HNSCall(PCWSTR method, PCWSTR path, PCWSTR request, PWSTR *response)
{
	char *verb = method ? utf8_from_utf16(method) : NULL, *place = path ? utf8_from_utf16(path) : NULL, *whole;
	HRESULT code = HR_INVALIDARG;

	if (response)
		*response = NULL;
	whole = place ? malloc(strlen(place) + 5) : NULL;
	if (!response) {
		code = HR_POINTER;
	} else if (whole && verb && place[0] == '/' && (!strcmp(verb, "GET") || !strcmp(verb, "POST") || !strcmp(verb, "DELETE"))) {
		strcpy(whole, "/v1");
		strcat(whole, place);
		code = call(verb, whole, request, response, NULL, NULL);
	}
	free(whole);
	free(place);
	free(verb);
	return code;
}

#define ABSENT(name)                          \
	EXPORT HRESULT WINAPI name(void)      \
	{                                     \
		return HR_NOTIMPL;            \
	}

ABSENT(HcsEnumerateComputeSystems)
ABSENT(HcsCreateComputeSystem)
ABSENT(HcsOpenComputeSystem)
ABSENT(HcsCloseComputeSystem)
ABSENT(HcsGrantVmAccess)
ABSENT(HcsStartComputeSystem)
ABSENT(HcsShutdownComputeSystem)
ABSENT(HcsTerminateComputeSystem)
ABSENT(HcsPauseComputeSystem)
ABSENT(HcsResumeComputeSystem)
ABSENT(HcsSaveComputeSystem)
ABSENT(HcsGetComputeSystemProperties)
ABSENT(HcsModifyComputeSystem)
ABSENT(HcsModifyServiceSettings)
ABSENT(HcsRegisterComputeSystemCallback)
ABSENT(HcsUnregisterComputeSystemCallback)
ABSENT(HcsCreateProcess)
ABSENT(HcsOpenProcess)
ABSENT(HcsCloseProcess)
ABSENT(HcsTerminateProcess)
ABSENT(HcsSignalProcess)
ABSENT(HcsGetProcessInfo)
ABSENT(HcsGetProcessProperties)
ABSENT(HcsModifyProcess)
ABSENT(HcsGetServiceProperties)
ABSENT(HcsRegisterProcessCallback)
ABSENT(HcsUnregisterProcessCallback)
